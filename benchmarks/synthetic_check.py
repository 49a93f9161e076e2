"""Actions of `dtsf synth`: they differ by motion, not by the pose of one frame. Measured on the true joints.

    python benchmarks/synthetic_check.py [--json]

Two classifiers of the same kind (random forest) see the exact 3-D joints of unseen subjects, relative to the pelvis' mean
position over the clip. One sees a random single frame of each clip, the other the whole trajectory (16 frames).
Two partner actions have the same poses in reverse order, so the first classifier can only guess between them.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from dtsf.pipeline.datasets.synthetic_scene import ACTIONS, Style, trajectory

PAIRS = ((1, 2), (3, 4), (5, 6), (8, 9), (11, 12))


def performances(subjects: range, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return joints (N, 16, 45) and action ids (N,)."""
    rows, labels = [], []
    for action in ACTIONS:
        for subject in subjects:
            for episode in range(episodes):
                style = Style(
                    np.random.default_rng((seed, 2, subject)),
                    np.random.default_rng((seed, 3, action, subject, episode)),
                )
                joints = trajectory(action, style, 16)
                rows.append((joints - joints[:, :1].mean(0)).reshape(16, -1))
                labels.append(action)
    return np.stack(rows), np.array(labels)


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = performances(range(1, 31), 4, seed=0)
    x_test, y_test = performances(range(31, 46), 4, seed=0)

    def one_frame(x: np.ndarray) -> np.ndarray:
        return x[np.arange(len(x)), rng.integers(16, size=len(x))]

    # Ten frames of every training clip, so that the single-frame model is not short of data.
    frame_model = RandomForestClassifier(300, random_state=0, n_jobs=1)
    frame_model.fit(np.concatenate([one_frame(x) for _ in range(10)]), np.tile(y, 10))
    clip_model = RandomForestClassifier(300, random_state=0, n_jobs=1).fit(x.reshape(len(x), -1), y)
    said_frame = frame_model.predict(one_frame(x_test))
    said_clip = clip_model.predict(x_test.reshape(len(x_test), -1))
    pair_of = {action: k for k, pair in enumerate(PAIRS) for action in pair}
    in_pair = np.array([pair_of[a] == pair_of[b] for a, b in zip(said_frame, y_test, strict=True)])
    result = {
        "one_frame": float((said_frame == y_test).mean()),
        "one_frame_right_pair": float(in_pair.mean()),
        "one_frame_within_right_pair": float((said_frame == y_test)[in_pair].mean()),
        "trajectory": float((said_clip == y_test).mean()),
        "test_clips": len(y_test),
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    print(
        f"one frame   {result['one_frame']:.3f} of 10 actions ({result['one_frame_right_pair']:.3f} name the right pair;"
    )
    print(f"            {result['one_frame_within_right_pair']:.3f} of those the right partner: 0.5 is a guess)")
    print(f"trajectory  {result['trajectory']:.3f}   ({result['test_clips']} performances of unseen subjects)")


if __name__ == "__main__":
    main()
