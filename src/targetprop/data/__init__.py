"""Data sets: readers of the published formats, a catalogue, batches."""

from targetprop.data.catalogue import Dataset, load
from targetprop.data.formats import DataError, Images
from targetprop.data.pipeline import Batches, split
from targetprop.data.sources import SOURCES

__all__ = ["SOURCES", "Batches", "DataError", "Dataset", "Images", "load", "split"]
