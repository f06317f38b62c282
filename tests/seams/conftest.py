from collecting import service  # noqa: F401
from mlflow_server import mlflow_database, mlflow_server, tracking  # noqa: F401
from postgres import postgres  # noqa: F401
from registries import database_url, registry, run_id  # noqa: F401
from stores import bucket, s3, store, swift  # noqa: F401
