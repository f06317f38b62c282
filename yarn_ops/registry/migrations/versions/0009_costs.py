"""What runs cost by stage, what was planned for them, and the budget that stopped them."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "costs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("device_s", sa.Float(53), nullable=False),
        sa.Column("joules", sa.Float(53)),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dollars", sa.Float(53), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_costs_run_id")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "stage", name=op.f("pk_costs")),
    )
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("planned", sa.JSON(none_as_null=True), nullable=True))
        runs.add_column(sa.Column("spent_budget", sa.JSON(none_as_null=True), nullable=True))
