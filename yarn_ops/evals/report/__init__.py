"""What a person is shown of an evaluation: a page, pictures, the model card."""
