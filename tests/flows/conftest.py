from person import person  # noqa: F401
