"""A service that has the fleet balanced without having the package: plain Celery, tasks by their names, JSON in and out.

    python enqueue_service.py check
    python enqueue_service.py start PLAN_ID [JOB_ID]
    python enqueue_service.py pause JOB_ID        (also: resume, cancel)

It needs the URLs of the rebalancer's broker and result backend, in ``BROKER_URL`` and ``RESULT_BACKEND`` (default: the
broker's). It never sees a node's URL or credential: a message carries ids only.
"""

from __future__ import annotations

import json
import os
import sys

from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer

#: Verb -> names of its arguments, in order; the last one of `start` may be left out.
VERBS = {
    "check": [],
    "start": ["plan_id", "job_id"],
    "pause": ["job_id"],
    "resume": ["job_id"],
    "cancel": ["job_id"],
}
#: A check surveys whole nodes; the other verbs answer within a second.
TIMEOUT_S = 600 if "check" in sys.argv[1:2] else 30


def main(arguments: list[str]) -> int:
    """Send one task, print its answer as a line of JSON, and say by the exit code whether the verb did what it says."""
    verb, *values = arguments or ["help"]
    if verb not in VERBS or len(values) > len(VERBS[verb]) or (verb != "check" and not values):
        sys.stderr.write(__doc__)
        return 2
    broker = os.environ["BROKER_URL"]
    app = Celery("some-service", broker=broker, backend=os.environ.get("RESULT_BACKEND", broker))
    named = dict(zip(VERBS[verb], values, strict=False))
    sent = app.send_task(f"rebalance.{verb}", kwargs=named, queue="rebalance.control")
    try:
        answer = sent.get(timeout=TIMEOUT_S)
    except NoAnswer:
        answer = {
            "reason": f"no answer within {TIMEOUT_S} s; is a worker running, and does BROKER_URL name its broker?"
        }
    except Exception as refused:  # noqa: BLE001  whatever the worker raised
        # Arguments that are no arguments: the message names the field. (Celery rebuilds the worker's exception here.)
        answer = {"reason": str(refused)}
    sys.stdout.write(json.dumps(answer) + "\n")
    done = bool(answer.get("plan_id")) if verb == "check" else not answer["reason"]
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
