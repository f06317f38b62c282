"""A model directory sent where people fetch models: a Hugging Face repository, an OCI registry or layout."""
