"""A small platform on Flask that is a citizen of the plane: the four moments in some seventy lines.

python examples/platform/app.py --port 17802 --exports DIR
"""

import argparse
import json
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from waitress import serve

from nightshift_client import Client


def create_app(plane: Client, exports: Path) -> Flask:
    """The platform; run records go below ``exports`` as the plane's importer reads them."""
    app = Flask(__name__)

    @app.before_request
    def somebody_is_here() -> None:
        if "X-Nightshift-Probe" not in request.headers:  # or the plane's own look would wake it
            plane.report_activity()

    @app.post("/api/generate")
    def generate() -> Response:
        wish = request.get_json()
        started = time.time()
        run_id = f"run_{int(started * 1000)}_{secrets.token_hex(3)}"
        plane.report_activity("generation_started", run_id)
        try:
            seed = wish.get("seed", secrets.randbelow(2**31))
            picture = write_record(exports, run_id, started, wish, seed)
            run = {"run_id": run_id, "start_time": started, "end_time": time.time(), "seed": seed}
            run |= {"outcome": "succeeded", "media_types": ["image"], "device": wish.get("device_id", "")}
            run |= {"prompt": wish["prompt"], "interception_config": wish.get("config", "")}
            plane.record_run(run | {"output_config": "img_standard", "safety_level": "youth"})
        finally:
            plane.report_activity("generation_finished", run_id)
        return jsonify(run_id=run_id, picture=str(picture))

    @app.post("/api/favorites/<run_id>")
    def favourite(run_id: str) -> Response:
        plane.record_feedback(run_id, "favorite")
        return jsonify(status="ok")

    @app.get("/api/settings/safety-level")
    def safety_level() -> Response:
        return jsonify(safety_level="youth")

    @app.get("/", defaults={"path": ""})
    @app.get("/<path:path>")
    def page(path: str) -> str:  # the single-page app answers everything, /health too: no sign of life
        return "<!doctype html><title>Workshop</title><div id=app></div>"

    return app


def write_record(exports: Path, run_id: str, started: float, wish: dict[str, Any], seed: int) -> Path:
    """The run's folder as the platform keeps it, with a picture of one colour; returns the picture."""
    now, device = datetime.fromtimestamp(started).astimezone(), wish.get("device_id") or "dev_000000000000"
    folder = exports / "json" / now.date().isoformat() / Path(device).name / run_id
    (folder / "final").mkdir(parents=True)
    colour = f'<rect width="64" height="64" fill="#{seed & 0xFFFFFF:06x}"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{colour}</svg>'
    files = {"input": ("00_input.txt", wish["prompt"]), "output_image": ("01_output_image.svg", svg)}
    record: dict[str, Any] = {
        "run_id": run_id,
        "timestamp": now.isoformat(),
        "device_id": device,
        "entities": [],
    }
    for sequence, (kind, (name, content)) in enumerate(files.items()):
        (folder / "final" / name).write_text(content, encoding="utf-8")
        record["entities"].append(
            {"sequence": sequence, "type": kind, "filename": name, "metadata": {"seed": seed}}
        )
    record["timestamp"] = now.replace(tzinfo=None).isoformat()  # the platform's clock, local and naive
    record |= {"config_name": wish.get("config", ""), "safety_level": "youth", "current_state": {"stage": 0}}
    (folder / "metadata.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return folder / "final" / "01_output_image.svg"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=17802)
    parser.add_argument("--exports", type=Path, required=True, help="folder for the run records")
    chosen = parser.parse_args()
    with Client() as client:
        serve(create_app(client, chosen.exports), host="127.0.0.1", port=chosen.port, threads=8)
