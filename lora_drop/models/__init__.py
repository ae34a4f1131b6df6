"""Load a pretrained model and its tokenizer by name."""
