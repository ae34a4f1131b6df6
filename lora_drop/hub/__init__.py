"""The Hugging Face Hub: revisions, its cache, and its failures in sentences."""
