"""A pretrained model and its tokenizer, by name."""
