"""The multimodal Swin: built from an `Architecture`, its cost, its pretrained weights."""
