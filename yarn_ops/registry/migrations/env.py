"""Alembic's way into the migrations; `yarn_ops.registry.database` hands over the connection.

Migrations only go up, and applied ones are never edited. A new one, after a change of tables.py and from
an upgraded database:

    python -c "from alembic import command; from sqlalchemy import create_engine; \
    from yarn_ops.registry.database import migrations; \
    connection = create_engine('sqlite:///registry.db').connect(); \
    command.revision(migrations(connection), 'what changes', autogenerate=True, rev_id='0002')"
"""

from alembic import context

from yarn_ops.registry.tables import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=Table.metadata, render_as_batch=True, compare_type=True
)
with context.begin_transaction():
    context.run_migrations()
