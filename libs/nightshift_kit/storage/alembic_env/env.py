"""Alembic's environment, shared by all services; run by ``nightshift_kit.storage.migrations``."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # SQLite can roll back a CREATE TABLE; Alembic's default says otherwise because of Python's old driver.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
