from extended import first, workplace  # noqa: F401
from person import person, typist  # noqa: F401
