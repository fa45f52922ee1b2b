"""Record and check: logged experience in, episodes and segments out. NumPy only, no torch."""

from dreamgym.data.checking import Card, check
from dreamgym.data.converting import Conversion, convert, pack
from dreamgym.data.episode import Episode
from dreamgym.data.errors import DatasetError
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.mixing import AnyDataset, MixedDataset, Mixture, opened
from dreamgym.data.page import write_page
from dreamgym.data.parallel import ShardPlan, record_shards, resume_shards
from dreamgym.data.policies import Policy
from dreamgym.data.prefetching import draw_ahead, prefetch
from dreamgym.data.reader import Dataset
from dreamgym.data.recorder import Recorder
from dreamgym.data.recording import record, resume
from dreamgym.data.recovery import Recovery, recover
from dreamgym.data.schema import DatasetMetadata
from dreamgym.data.segments import SegmentBatch, SegmentSampler
from dreamgym.data.skip_frames import SkipFrames, frame_skip_of
from dreamgym.data.skipped import SkippedDataset, skipping
from dreamgym.data.spaces import (
    UnsupportedSpaceError,
    check_supported,
    space_from_json,
    space_to_json,
)
from dreamgym.data.vector_recorder import VectorRecorder
from dreamgym.data.writer import DatasetWriter

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
