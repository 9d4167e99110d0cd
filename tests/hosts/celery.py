"""Run Celery's integration tests of tasks, canvas and inspect against `synap.contrib.celery`, as broker and backend.

Get them with `pip download --no-deps --no-binary :all: celery`, unpack it, and run
`python -m tests.hosts.celery celery-5.7.0`, with that version of Celery and the plugins of its `requirements/test.txt`
installed. Arguments behind the path go to pytest.

Celery itself skips what records its steps in Redis beside the broker ("Requires redis result backend").
"""

from __future__ import annotations

import sys

from tests.hosts.runs import checkout, exceptions, pytest_run

CONFTEST = """
import os

os.environ["TEST_BROKER"] = os.environ["TEST_BACKEND"] = os.environ["SYNAP_URL"].replace("http://", "synap://")

import synap.contrib.celery
"""

TESTS = ("test_tasks.py", "test_canvas.py", "test_inspect.py")
LEFT_OUT = {
    "it records its steps in a Redis beside the broker, and doesn't skip where there is none": (
        "t/integration/test_canvas.py::test_chain::test_chord_header_id_duplicated_on_rabbitmq_msg_duplication",
    ),
    "Celery expects it to fail with Redis too (its issue 6437)": (
        "t/integration/test_canvas.py::test_chord::test_error_propagates_from_chord",
    ),
    "it sets its flag to False after it has sent the task, and a worker that is quick has set it to True by then": (
        "t/integration/test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0",
    ),
    "they fail in the same way against Valkey here, as the worker's log and inspect's second of patience go": (
        "t/integration/test_tasks.py::test_tasks::test_revoked_by_headers_complex_canvas",
        "t/integration/test_tasks.py::test_trace_log_arguments::test_task_success",
        "t/integration/test_tasks.py::test_trace_log_arguments::test_task_failed",
    ),
}

if __name__ == "__main__":
    extra = list(sys.argv[2:])
    del sys.argv[2:]
    source = checkout(__doc__, "t/integration/test_tasks.py")
    arguments = [*exceptions(LEFT_OUT), *extra, "-o", "asyncio_mode=auto", "-o", "python_classes=test_*"]
    arguments += [f"t/integration/{name}" for name in TESTS] if not any("::" in a or ".py" in a for a in extra) else []
    sys.exit(pytest_run(arguments, {"conftest.py": CONFTEST}, trees={"t": source / "t"}))
