"""MLflow's server behind our guard: `python -m yarn_ops.mlflow_server --port N`.

Database and artifacts are those of MLFLOW_BACKEND_STORE_URI and MLFLOW_DEFAULT_ARTIFACT_ROOT, as for
`mlflow server`. Clients reach artifacts directly.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import SecretStr, ValidationError

from yarn_ops import guard
from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.page_script import PageScript
from yarn_ops.settings import MlflowServerSettings, adopt_environment, read_settings

MODELS_FIRST = """for (const [name, value] of [["mlflow.workflowType_v1", '"machine_learning"'],
  ["_mlflow_model_registry_promo_modal_dismissed_v1", "true"],
  ["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"]])
  if (localStorage.getItem(name) === null) localStorage.setItem(name, value)"""
"""until a person chooses otherwise: models in its menu, no advertisement, no assistant beside the page"""


def application() -> guard.Guard:
    """What each worker process serves; the environment is prepared by `main`."""
    settings = read_settings()
    user, password = settings.mlflow_username, settings.mlflow_password
    if not user or password is None:
        raise SettingsError(
            "YARN_OPS_MLFLOW_USERNAME, YARN_OPS_MLFLOW_PASSWORD: not set; no server is started without them"
        )
    from mlflow.server.fastapi_app import app

    whole = SecretStr(f"{user}:{password.get_secret_value()}")
    key = settings.session_key or whole
    pages = PageScript(app, MODELS_FIRST)
    return guard.Guard(pages, guard.MLFLOW, password=whole, key=key, names=settings.server_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    try:
        places = MlflowServerSettings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]).upper()
        raise SettingsError(
            f"MLFLOW_{name}: not set; name MLflow's database and the root of artifacts"
        ) from None

    from mlflow.server import constants

    database = places.backend_store_uri.get_secret_value()
    adopt_environment(
        {
            constants.BACKEND_STORE_URI_ENV_VAR: database,
            constants.REGISTRY_STORE_URI_ENV_VAR: database,
            constants.ARTIFACT_ROOT_ENV_VAR: places.default_artifact_root,
            # The guard does more; MLflow's own believes every page of this machine.
            "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        }
    )
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, places.default_artifact_root)
    application()
    guard.serve("yarn_ops.mlflow_server:application", asked.host, asked.port, workers=asked.workers)


if __name__ == "__main__":
    try:
        main()
    except YarnOpsError as error:
        sys.exit(f"mlflow_server: {error}")
