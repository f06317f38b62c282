from extended import first, workplace  # noqa: F401
from one_service import called, heard, recipe, up  # noqa: F401
from person import person, typist  # noqa: F401
