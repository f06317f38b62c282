"""What a measurement sums up, item by item, so that two checkpoints can be compared pair by pair."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("measurements", sa.Column("items", sa.LargeBinary()))
