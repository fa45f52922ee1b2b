"""MDN-RNN: the world model of Ha and Schmidhuber (2018), arXiv 1803.10122."""

from __future__ import annotations

from dreamgym.models.mdn_rnn.config import MDNRNNConfig
from dreamgym.models.mdn_rnn.fast import FastMDNRNN
from dreamgym.models.mdn_rnn.model import MDNRNN

MDNRNN.fast_form = FastMDNRNN

__all__ = ["MDNRNN", "MDNRNNConfig"]
