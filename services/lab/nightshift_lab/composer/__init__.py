"""The composer: drafts a config from a theme and production's configs, without a model, the same each time."""
