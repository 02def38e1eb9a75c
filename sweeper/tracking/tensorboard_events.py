"""Messages of TensorBoard's event files, built without TensorFlow.

Purpose: tensorboard's own builders of texts and HPARAMS sessions import TensorFlow; its protocol buffers do not. These make the
same messages (tensorboard/plugins/text/summary.py, tensorboard/plugins/hparams/summary.py), and read them again.
Does not know: sweeps. Cost: microseconds a message; reading a file of 1,000 values takes about 0.1 s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TEXT_SUFFIX = "/text_summary"


@dataclass
class Known:
    """What a run's event files hold: points (name, step, time in ms), the last text of each name, whether parameters are there."""

    scalars: set[tuple[str, int, int]] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    started: bool = False


def scalar(name: str, value: float) -> Any:
    """A summary with one number."""
    from tensorboard.compat.proto import summary_pb2

    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, simple_value=value)])


def text(name: str, content: str) -> Any:
    """A summary with one markdown text."""
    from tensorboard.plugins.text import metadata

    return _summary(f"{name}{_TEXT_SUFFIX}", metadata.create_summary_metadata(display_name=name, description=""), content)


def session_start(params: Mapping[str, object], seconds: float) -> Any:
    """The summary that gives a run its parameters in the HPARAMS tab; `seconds` is Unix time."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo(start_time_secs=seconds)
    for name, value in params.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)
    kind = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_start_info=start))
    return _summary(metadata.SESSION_START_INFO_TAG, kind)


def session_end(failed: bool, seconds: float) -> Any:
    """The summary that says how the run ended."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=seconds)
    kind = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    return _summary(metadata.SESSION_END_INFO_TAG, kind)


def event(summary: Any, step: int = 0, seconds: float | None = None) -> Any:
    """An event with `summary` at `seconds` of Unix time; default: now."""
    from tensorboard.compat.proto import event_pb2

    return event_pb2.Event(wall_time=time.time() if seconds is None else seconds, step=step, summary=summary)


def read(folder: Path) -> Known:
    """What the event files of `folder` hold; one cut off by a kill is read as far as it goes."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    known = Known()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for found in EventFileLoader(str(path)).Load():
            for value in found.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                if plugin == "text":
                    known.texts[value.tag.removesuffix(_TEXT_SUFFIX)] = value.tensor.string_val[0].decode()
                elif plugin == "hparams":
                    known.started = True
                else:
                    known.scalars.add((value.tag, found.step, round(found.wall_time * 1000)))
    return known


def _summary(tag: str, kind: Any, content: str | None = None) -> Any:
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

    shape = tensor_shape_pb2.TensorShapeProto()
    if content is None:
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape)
    else:
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[content.encode()])
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=kind, tensor=tensor)])
