"""What can be asked of the data in a word; the configuration offers these words."""

from typing import Literal

Fit = Literal["squash", "crop"]  # how a 4:3 picture becomes square
Unit = Literal["lesion", "image"]  # what must stay together in a split
PartitionKind = Literal["iid", "dirichlet", "site", "pooled"]  # how nodes share a data set
