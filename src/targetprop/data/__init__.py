"""Data sets: readers of the published formats, a catalogue, batches."""

from targetprop.data.catalogue import SOURCES, Dataset, load
from targetprop.data.formats import DataError, Images
from targetprop.data.pipeline import Batches, split

__all__ = ["SOURCES", "Batches", "DataError", "Dataset", "Images", "load", "split"]
