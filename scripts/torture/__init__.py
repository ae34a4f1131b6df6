"""The promises of docs/reliability.md, tried: `make torture`."""
