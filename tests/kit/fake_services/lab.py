"""Run as a module."""

from tests.kit.fake_services.common import main

if __name__ == "__main__":
    raise SystemExit(main("lab"))
