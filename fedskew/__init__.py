"""fedskew: federated training of a multimodal Swin Transformer that really shrinks while it learns."""

__version__ = "0.2.0"
