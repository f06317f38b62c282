"""Everything a user can cause, as exceptions.

    YarnOpsError            one line: where, what, what next; the command line prints it and exits with 2
    ├── RecipeError         the recipe (what to do) is wrong
    ├── SettingsError       the settings (where to do it) are wrong
    ├── BaseModelError      the base model cannot be found, read or trusted
    ├── RopeError           a RoPE specification is impossible, or unsafe for this architecture
    │   ├── UnprovenRope    there is no reference for this architecture or kind of scaling
    │   └── ProofError      a loaded model does not turn its heads by the reference frequencies
    ├── DataError           documents or shards are missing, empty, too short or damaged
    ├── TrainError          the training process failed, or its loss is not finite
    │   ├── TrainerKilled   it was ended from outside: the same again may well succeed
    │   └── Stopped         asked to stop; a checkpoint was written and a later run goes on from it
    │       └── OverBudget  stopped before its budget was passed
    ├── MergeError          the merged model is not the trained one
    ├── EvaluationError     a measurement cannot be made
    ├── ExportError         a model or adapter cannot be written in the form that an engine reads
    ├── ServingError        a server cannot be asked, or there is nothing to compare its answers with
    ├── StoreError          object storage is unreachable or refuses
    │   └── Damaged         a stored or cached directory is not what its manifest says
    ├── RegistryError       the run registry is unreachable or not migrated
    │   └── LeaseLost       another process holds the lease of this stage now
    ├── AwaitsApproval      measured and passed: a person has to promote it
    ├── ReleaseError        MLflow is unreachable, or no model version matches
    │   └── ClaimError      a release is not what was signed, or claims more than was measured
    └── GateFailed          measured and rejected: the model got worse at one end

An exception outside this tree that reaches a user is a fault of ours.
"""

import errno

from yarn_ops.shown import one_line

MOST_LETTERS = 400


SERVICES = {
    "boto3": "S3", "botocore": "S3", "s3transfer": "S3", "mlflow": "MLflow", "prefect": "Prefect",
    "httpx": "a server", "httpx2": "a server", "requests": "a server", "urllib3": "a server",
    "sqlalchemy": "the database", "psycopg": "the database", "sqlite3": "the database",
    "alembic": "the database", "distributed": "the cluster",
}  # fmt: skip
"""packages through which services are asked, and what their errors are about"""
SURROUNDINGS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
    errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT,
    errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip
"""errors of the operating system that say something of the machine, not of us"""


def service_fault(error: BaseException) -> str | None:
    """One line about an error of a service or of the operating system; None where it is another kind.

    For what no part of ours has told better: an outer bound, so that none of these ends in a traceback.
    """
    for kind in type(error).__mro__:
        service = SERVICES.get(kind.__module__.partition(".")[0])
        if service is not None:
            text = str(getattr(error, "orig", None) or error) or type(error).__name__
            return one_line(f"{service}: {text}")[:MOST_LETTERS] + "; `yarn-ops doctor` asks every service"
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        where = f"{error.filename}: " if error.filename else ""
        return one_line(f"{where}{error.strerror or error}; correct it and run again")
    return None


class YarnOpsError(Exception):
    """Base of all errors a user can cause. `str(error)` is one line, no secret: where, what, what next."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class RecipeError(YarnOpsError): ...


class SettingsError(YarnOpsError): ...


class BaseModelError(YarnOpsError): ...


class RopeError(YarnOpsError): ...


class UnprovenRope(RopeError): ...


class ProofError(RopeError): ...


class DataError(YarnOpsError): ...


class TrainError(YarnOpsError): ...


class TrainerKilled(TrainError): ...


class Stopped(TrainError): ...


class OverBudget(Stopped): ...


class MergeError(YarnOpsError): ...


class EvaluationError(YarnOpsError): ...


class ExportError(YarnOpsError): ...


class ServingError(YarnOpsError): ...


class StoreError(YarnOpsError): ...


class Damaged(StoreError):
    """`set_aside`: the digest of the directory, where it was taken out of use and can be made again."""

    def __init__(self, message: str, set_aside: str | None = None) -> None:
        super().__init__(message)
        self.set_aside = set_aside


class RegistryError(YarnOpsError): ...


class LeaseLost(RegistryError): ...


class ReleaseError(YarnOpsError): ...


class ClaimError(ReleaseError): ...


class AwaitsApproval(YarnOpsError):
    run_id: str | None = None
    """in the registry, of the run that waits"""


class GateFailed(YarnOpsError):
    run_id: str | None = None
    """in the registry, of the run that ended so"""
