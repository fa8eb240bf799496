"""Two small real models with their weights, and the data to calibrate and to test them on.

`load("vgg_fashion")` and `load("resnet_fashion")` give models trained on Fashion-MNIST; `load_sample` and
`calibration_batches` give images that ship with the library; `load_fashion_mnist` reads the whole data set from a
folder, where `download_fashion_mnist` can put it.
"""

from __future__ import annotations

from exprune_fx.zoo.data import CLASSES as CLASSES
from exprune_fx.zoo.data import MEAN as MEAN
from exprune_fx.zoo.data import STD as STD
from exprune_fx.zoo.data import load_fashion_mnist as load_fashion_mnist
from exprune_fx.zoo.data import normalise as normalise
from exprune_fx.zoo.download import download_fashion_mnist as download_fashion_mnist
from exprune_fx.zoo.evaluate import accuracy as accuracy
from exprune_fx.zoo.models import resnet_fashion as resnet_fashion
from exprune_fx.zoo.models import vgg_fashion as vgg_fashion
from exprune_fx.zoo.sample import Sample as Sample
from exprune_fx.zoo.sample import calibration_batches as calibration_batches
from exprune_fx.zoo.sample import load_sample as load_sample
from exprune_fx.zoo.weights import load as load
from exprune_fx.zoo.weights import names as names
