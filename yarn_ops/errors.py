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
    ├── MergeError          the merged model is not the trained one
    ├── EvaluationError     a measurement cannot be made
    ├── ExportError         a model or adapter cannot be written in the form that an engine reads
    ├── StoreError          object storage is unreachable or refuses
    │   └── Damaged         a stored or cached directory is not what its manifest says
    ├── RegistryError       the run registry is unreachable or not migrated
    │   └── LeaseLost       another process holds the lease of this stage now
    ├── ReleaseError        MLflow is unreachable, or no model version matches
    └── GateFailed          measured and rejected: the model got worse at one end

An exception outside this tree that reaches a user is a fault of ours.
"""

from yarn_ops.shown import one_line


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


class MergeError(YarnOpsError): ...


class EvaluationError(YarnOpsError): ...


class ExportError(YarnOpsError): ...


class StoreError(YarnOpsError): ...


class Damaged(StoreError):
    """`set_aside`: the digest of the directory, where it was taken out of use and can be made again."""

    def __init__(self, message: str, set_aside: str | None = None) -> None:
        super().__init__(message)
        self.set_aside = set_aside


class RegistryError(YarnOpsError): ...


class LeaseLost(RegistryError): ...


class ReleaseError(YarnOpsError): ...


class GateFailed(YarnOpsError):
    run_id: str | None = None
    """in the registry, of the run that ended so"""
