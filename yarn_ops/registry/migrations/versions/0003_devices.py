"""Which device a stage has to itself, or waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stage_runs", sa.Column("device", sa.Text()))
    op.add_column("stage_runs", sa.Column("device_since", sa.DateTime(timezone=True)))
    op.add_column("stage_runs", sa.Column("device_rank", sa.Integer()))
    taken = sa.text("device_since IS NOT NULL")
    op.create_index(
        "uq_stage_runs_device",
        "stage_runs",
        ["device"],
        unique=True,
        sqlite_where=taken,
        postgresql_where=taken,
    )
