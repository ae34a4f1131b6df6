"""The Hugging Face Hub: revisions, cache, and readable error messages."""
