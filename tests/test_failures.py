"""Our error is found again inside what other libraries made of it."""

from __future__ import annotations

import io
import logging

from decathlete.errors import DataError
from decathlete.failures import find_error, in_one_line, is_out_of_memory, short_log

OURS = DataError("la_007", "must be finite", "NaN", "Fix the file")


def wrapped(error: Exception, times: int = 2) -> Exception:
    for level in range(times):
        try:
            raise RuntimeError(f"level {level}") from error
        except RuntimeError as outer:
            error = outer
    return error


def test_error_is_found_under_its_wrapping():
    assert find_error(wrapped(OURS)) is OURS


def test_error_is_found_where_another_was_raised_while_handling_it():
    later = KeyError("while handling")
    later.__context__ = wrapped(OURS)
    assert find_error(later) is OURS


def test_error_is_found_in_the_text_that_a_data_worker_hands_over():
    text = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
    found = find_error(RuntimeError(f"{text}decathlete.errors.DataError: {OURS}\n\nThe above exception was ..."))
    assert isinstance(found, DataError)
    assert str(found) == str(OURS)


def test_errors_of_others_are_not_ours():
    assert find_error(wrapped(ValueError("x"))) is None


def test_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_error(first) is None
    assert not is_out_of_memory(first)


def test_out_of_memory_is_known_on_gpu_cpu_and_under_a_wrapping():
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(wrapped(MemoryError()))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_log_leaves_out_the_traceback_of_our_error_only():
    stream = io.StringIO()
    logger = logging.getLogger("test_failures")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(stream))
    with short_log():
        logger.error("ours", exc_info=wrapped(OURS))
        logger.error("theirs", exc_info=wrapped(ValueError("x")))
    logger.error("after", exc_info=OURS)
    ours, rest = stream.getvalue().split("theirs")
    assert ours == "ours\n"
    theirs, after = rest.split("after")
    assert "Traceback" in theirs
    assert "Traceback" not in ours
    assert "la_007" in after


def test_error_of_others_is_told_in_one_line_by_its_first_cause():
    outer = RuntimeError("Failed to evaluate ConfigExpression:\n\"$__local_refs['train::trainer'].run()\"")
    outer.__cause__ = RuntimeError("wrapped")
    outer.__cause__.__cause__ = ValueError("size must be\n  positive")
    assert in_one_line(outer) == "train::trainer.run(): ValueError: size must be positive"
    plain = RuntimeError('Failed to evaluate ConfigExpression:\n"$[{1: 2}]"')
    plain.__cause__ = FileNotFoundError(2, "No such file", "in")
    assert in_one_line(plain) == "in: No such file"
    assert in_one_line(FileExistsError(17, "File exists", "out")) == "out: File exists"
