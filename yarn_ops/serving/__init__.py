"""What a server answers, compared with what the model that was measured would answer."""
