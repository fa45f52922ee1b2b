"""Record and check: logged experience in, episodes and segments out. NumPy only, no torch."""

from dreamgym.data.checking import Card, check
from dreamgym.data.conversion import Conversion, convert, pack
from dreamgym.data.dataset import Dataset
from dreamgym.data.episodes import Episode
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.hdf5.recovery import Recovery, recover
from dreamgym.data.hdf5.schema import DatasetMetadata
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.html_report import write_page
from dreamgym.data.mixture import AnyDataset, MixedDataset, Mixture, opened
from dreamgym.data.policies import Policy, PolicyLike, PredictPolicy
from dreamgym.data.recorder import Recorder, VectorRecorder
from dreamgym.data.recording import ShardPlan, record, record_shards, resume, resume_shards
from dreamgym.data.segments import SegmentBatch, SegmentSampler, draw_ahead, prefetch
from dreamgym.data.skipping import SkipFrames, SkippedDataset, frame_skip_of, skipping
from dreamgym.data.spaces import check_supported, space_from_json, space_to_json
from dreamgym.errors import DatasetError, UnsupportedSpaceError

__all__ = [
    "AnyDataset",
    "Card",
    "Conversion",
    "Dataset",
    "DatasetError",
    "DatasetMetadata",
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
    "check_supported",
    "convert",
    "draw_ahead",
    "frame_skip_of",
    "opened",
    "pack",
    "prefetch",
    "record",
    "record_shards",
    "recover",
    "resume",
    "resume_shards",
    "skipping",
    "space_from_json",
    "space_to_json",
    "write_page",
]
