"""Flower ClientApp: a hospital's side. The work is in `fedskew.federation.client`."""

from pathlib import Path

from fedskew.apps import make_client_app
from fedskew.plugins import load_plugins

load_plugins(app=Path(__file__).resolve().parent)  # part of the bundle whose hash a site approves
app = make_client_app()
