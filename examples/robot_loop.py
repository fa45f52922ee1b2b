"""Run an exported controller in a control loop at a fixed rate, with NumPy and onnxruntime alone.

    python robot_loop.py FOLDER --rate 50 --steps 500

FOLDER is what `dreamgym export WORLD --policy FILE --data DATASET --out FOLDER` wrote. Replace
`read_sensors`, `send` and `fall_back` by your robot's; everything else stays. Until then, sensors
are random numbers, which the guard of a controller with a world refuses in nearly every step.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime


def read_sensors(inputs, rng):
    """Return the observation by input name; here random numbers of the right shape."""
    return {
        name: rng.normal(size=each["shape"]).astype(each["dtype"])
        for name, each in inputs.items()
        if name.startswith("observation")
    }


def send(action):
    """Carry out an action; with a frame skip, it is the block of several."""


def fall_back(action):
    """Return a safe action in place of one that the guard does not trust: here, zeros."""
    return np.zeros_like(action)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()

    description = json.loads((arguments.folder / "controller.json").read_text())
    inputs = {each["name"]: each for each in description["graphs"]["controller.onnx"]["inputs"]}
    limits = description["guard"]["outputs"] if description["guard"] else {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(arguments.folder / "controller.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]

    rng = np.random.default_rng(0)
    # State and previous action; zeros before the first call.
    memory = {name: np.zeros(each["shape"], each["dtype"]) for name, each in inputs.items()}
    late = fallbacks = 0
    deadline = time.monotonic()
    for step in range(arguments.steps):
        memory |= read_sensors(inputs, rng)
        if "start" in inputs:
            memory["start"] = np.array([step == 0])
        if "noise" in inputs:
            memory["noise"] = rng.random(inputs["noise"]["shape"], dtype=np.float32)
        outputs = dict(zip(names, session.run(names, memory), strict=True))

        action = outputs["action"]
        if any(outputs[name][0] > limit["threshold"] for name, limit in limits.items()):
            action, fallbacks = fall_back(action), fallbacks + 1
        send(action[0])

        for following, name in description["state"].items():
            memory[name] = outputs[following]
        if "previous_action" in inputs:  # the one that was carried out
            memory["previous_action"] = action.astype(inputs["previous_action"]["dtype"])

        deadline += 1 / arguments.rate
        wait = deadline - time.monotonic()
        late += wait < 0
        time.sleep(max(0.0, wait))
    print(f"{arguments.steps} steps, {fallbacks} with the fallback action, {late} late")
    print("The sensors were random numbers; replace read_sensors by your robot's.")


if __name__ == "__main__":
    main()
