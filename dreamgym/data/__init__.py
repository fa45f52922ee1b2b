"""Datasets: record, check, convert and read logged experience. NumPy only, without torch."""

from dreamgym.data.buffers import convert_buffer
from dreamgym.data.checking import DatasetCard, check
from dreamgym.data.conversion import Conversion, convert, pack
from dreamgym.data.dataset import Dataset
from dreamgym.data.episodes import Episode
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.frame_skip import FrameSkip, SkipFrames, frame_skip_of
from dreamgym.data.hdf5.recovery import Recovery, recover
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.html_report import write_page
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.mixture import AnyDataset, DatasetSource, MixedDataset, Mixture, open_dataset
from dreamgym.data.policies import Policy, PolicyLike, PredictPolicy
from dreamgym.data.recorder import Recorder, VectorRecorder
from dreamgym.data.recording import ShardPlan, record, record_shards, resume, resume_shards
from dreamgym.data.segments import SegmentBatch, SegmentSampler, prefetch
from dreamgym.data.skipped_dataset import SkippedDataset, with_frame_skip
from dreamgym.errors import DatasetError, UnsupportedSpaceError

__all__ = [
    "AnyDataset",
    "Conversion",
    "Dataset",
    "DatasetCard",
    "DatasetError",
    "DatasetMetadata",
    "DatasetSource",
    "DatasetWriter",
    "Episode",
    "ForeignOptions",
    "FrameSkip",
    "MixedDataset",
    "Mixture",
    "Policy",
    "PolicyLike",
    "PredictPolicy",
    "Recorder",
    "Recovery",
    "SegmentBatch",
    "SegmentSampler",
    "ShardPlan",
    "SkipFrames",
    "SkippedDataset",
    "UnsupportedSpaceError",
    "VectorRecorder",
    "check",
    "convert",
    "convert_buffer",
    "frame_skip_of",
    "open_dataset",
    "pack",
    "prefetch",
    "record",
    "record_shards",
    "recover",
    "resume",
    "resume_shards",
    "with_frame_skip",
    "write_page",
]
