from person import person, typist  # noqa: F401
