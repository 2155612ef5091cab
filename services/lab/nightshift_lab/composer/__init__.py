"""The composer: drafts a config from a theme and production's configs, always the same."""
