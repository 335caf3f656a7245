"""Flower ClientApp: a hospital's side. The work is in `fedskew.federation.client`."""

from fedskew.apps import make_client_app

app = make_client_app()
