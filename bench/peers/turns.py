"""Measuring in turns, as `tessera bench train --turns` does: two programs that wait for each other see the
same moments of a machine whose speed changes.

After its warm-up a program prints {"ready": true}; each line of its standard input is then a number of
steps to run, answered by a line {"steps": n, "seconds": s}; its summary follows the end of the input.
"""
import json
import sys
import time


def time_steps(step, count):
    """The seconds of each of `count` calls of step()."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def take_turns(step):
    """Runs step() as the standard input says. The seconds of every step."""
    print(json.dumps({"ready": True}), flush=True)
    seconds = []
    for line in sys.stdin:
        turn = time_steps(step, int(line))
        print(json.dumps({"steps": len(turn), "seconds": sum(turn)}), flush=True)
        seconds += turn
    return seconds
