"""Cost programs as language models write them, in many styles; each has to be accepted."""

PROGRAMS = {
    'type_hints': '''
import numpy as np

def stage1_target_constraint1(end_effector: np.ndarray, keypoints: np.ndarray) -> float:
    """Align the end effector with the target."""
    offset: np.ndarray = end_effector - keypoints[0]
    return float(np.linalg.norm(offset))
''',
    'typing_names': """
def distance(a: np.ndarray, b: Optional[List[float]]) -> Union[float, None]:
    return np.linalg.norm(a - b)

def stage1_target_constraint1(end_effector: np.array, keypoints: list[np.ndarray]) -> float | int:
    return distance(end_effector, keypoints[0])
""",
    'markdown': '''
Here are the constraint functions for the task:

```python
# The task involves picking up the mug.
num_stages = 1

### stage 1 target constraints
def stage1_target_constraint1(end_effector, keypoints):
    """Put your explanation here."""
    mug_handle = keypoints[0]
    cost = np.linalg.norm(end_effector - mug_handle)
    return cost
```

Each function returns a cost that is zero or less where the constraint is satisfied.
''',
    'two_fences': """
**Stage 1**
```python
def stage1_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(end_effector - keypoints[0])
```
**Stage 2**
```python
def stage2_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(keypoints[0] - keypoints[1])
```
""",
    'bare_fence': """```
def stage1_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(end_effector - keypoints[0])
```""",
    'rekep_tail': """
num_stages = 2

def stage1_target_constraint1(end_effector, keypoints):
    "Align."
    return np.linalg.norm(end_effector - keypoints[0])

grasp_keypoints = [0, -1]
release_keypoints = [-1, 0]
""",
    'offsetted_point': '''
def stage2_target_constraint1(end_effector, keypoints):
    """The target is 10 cm above the receptacle."""
    offsetted_point = keypoints[1] + np.array([0, 0, 0.1])
    cost = np.linalg.norm(keypoints[0] - offsetted_point)
    return cost
''',
    'in_place_offset': """
def stage2_target_constraint1(end_effector, keypoints):
    goal = keypoints[1]
    goal[2] += 0.1
    return np.linalg.norm(keypoints[0] - goal) + goal[2]
""",
    'upright': '''
def stage2_path_constraint1(end_effector, keypoints):
    """The teapot must remain upright (two keypoints make its axis)."""
    vector = keypoints[1] - keypoints[0]
    vector = vector / np.linalg.norm(vector)
    z_axis = np.array([0.0, 0.0, 1.0])
    dot = np.dot(vector, z_axis)
    angle = np.arccos(np.clip(dot, -1.0, 1.0))
    return angle - np.deg2rad(15)
''',
    'parallel': """
def stage2_path_constraint1(end_effector, keypoints):
    a = keypoints[1] - keypoints[0]
    b = keypoints[3] - keypoints[2]
    return 1 - abs(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
""",
    'perpendicular_distance': """
def stage1_collision_constraint1(end_effector, keypoints):
    line = keypoints[3] - keypoints[2]
    away = np.linalg.norm(np.cross(line, end_effector - keypoints[2])) / np.linalg.norm(line)
    return max(0.0, 0.05 - away)
""",
    'if_else': """
def stage1_collision_constraint1(end_effector, keypoints):
    if end_effector[2] < keypoints[0][2]:
        cost = 1.0
    elif end_effector[2] < keypoints[0][2] + 0.05:
        cost = 0.5
    else:
        cost = 0.0
    return cost
""",
    'early_return': """
def stage1_collision_constraint1(end_effector, keypoints):
    if len(keypoints) <= 2:
        return 0.0
    for obstacle in keypoints[2:]:
        if np.linalg.norm(end_effector - obstacle) < 0.2:
            return 1.0
    return 0.0
""",
    'ternary': """
def stage1_collision_constraint1(end_effector, keypoints):
    return 0 if end_effector[2] >= keypoints[0, 2] else 1
""",
    'axis_norm': """
def stage2_collision_constraint1(end_effector, keypoints):
    distances = np.linalg.norm(keypoints[2:] - end_effector, axis=1)
    return np.sum(np.maximum(0.1 - distances, 0))
""",
    'axis_norm_last': """
def stage2_collision_constraint1(end_effector, keypoints):
    distances = np.linalg.norm(keypoints[2:] - end_effector[None, :], axis=-1, keepdims=True)
    return float(np.max(np.clip(0.15 - distances, 0.0, None)))
""",
    'masks': """
def stage2_collision_constraint1(end_effector, keypoints):
    obstacles = keypoints[2:]
    distances = np.sqrt(np.sum((obstacles - end_effector) ** 2, axis=1))
    near = (distances < 0.3) & (obstacles[:, 2] > 0.0)
    return np.sum(0.3 - distances[near])
""",
    'list_comprehension': """
def stage2_collision_constraint1(end_effector, keypoints):
    penalties = [max(0, 0.1 - np.linalg.norm(end_effector - p)) for p in keypoints[2:]]
    return sum(penalties)
""",
    'min_distance': """
def stage2_collision_constraint1(end_effector, keypoints):
    nearest = min(np.linalg.norm(end_effector - keypoints[i]) for i in range(2, len(keypoints)))
    return max(0, 0.12 - nearest)
""",
    'min_default': """
def stage2_collision_constraint1(end_effector, keypoints):
    nearest = min([np.linalg.norm(end_effector - p) for p in keypoints[2:]], default=1.0)
    return max(0.1 - nearest, 0.0)
""",
    'float_inf': """
def stage2_collision_constraint1(end_effector, keypoints):
    nearest = float('inf')
    for i in range(2, len(keypoints)):
        distance = np.linalg.norm(end_effector - keypoints[i])
        if distance < nearest:
            nearest = distance
    return 0.1 - nearest
""",
    'numpy_inf': """
def stage2_collision_constraint1(end_effector, keypoints):
    best = np.inf
    for i, obstacle in enumerate(keypoints[2:], start=2):
        best = np.minimum(best, np.sum(np.abs(end_effector - obstacle)))
    return best
""",
    'accumulated': """
def stage1_path_constraint1(end_effector, keypoints):
    cost = 0
    weights = (1.0, 0.5, 0.25)
    for weight, coordinate in zip(weights, end_effector - keypoints[0]):
        cost += weight * abs(coordinate)
        cost *= 1
    return cost
""",
    'while_free_steps': """
def stage1_path_constraint1(end_effector, keypoints):
    distance = np.linalg.norm(end_effector - keypoints[0])
    step_size = 1e-2
    num_steps = int(np.ceil(distance / step_size))
    total = 0
    for _ in range(num_steps):
        total += step_size
    return round(total, 3)
""",
    'helper': '''
SAFE_DISTANCE = 0.1
UP = np.array([0, 0, 1])

def distance(a, b):
    """Euclidean distance."""
    return np.linalg.norm(np.array(a) - np.array(b))

def _penalty(value, limit):
    return max(0.0, limit - value)

def stage1_target_constraint1(end_effector, keypoints):
    return distance(end_effector, keypoints[0])

def stage1_collision_constraint1(end_effector, keypoints):
    return sum(_penalty(distance(end_effector, o), SAFE_DISTANCE) for o in keypoints[2:])
''',
    'calls_another': """
def stage1_target_constraint1(end_effector, keypoints):
    return np.linalg.norm(end_effector - keypoints[0])

def stage1_target_constraint2(end_effector, keypoints):
    return stage1_target_constraint1(end_effector, keypoints) ** 2
""",
    'chained_comparison': """
def stage2_path_constraint1(end_effector, keypoints):
    height = end_effector[2]
    return 0.0 if 0.05 < height <= 0.4 and not height == 0.1 else 1.0
""",
    'boolean': """
def stage2_path_constraint1(end_effector, keypoints):
    return end_effector[2] < 0.1 or keypoints[0][2] < 0.0
""",
    'numeric_styles': """
def stage2_path_constraint1(end_effector, keypoints):
    margin = 1_000e-3 / 10
    return (-end_effector[-1] + +margin) * 0x10 // 1 % 7
""",
    'line_continuation': """
def stage2_path_constraint1(end_effector,
                            keypoints):
    cost = end_effector[0] \\
        + end_effector[1]
    return (
        cost
        - keypoints[0][0]  # x
        - keypoints[0][1]  # y
    )
""",
    'unpacking': """
def stage2_path_constraint1(end_effector, keypoints):
    x, y, z = end_effector
    (a, b), c = (x, y), z
    return abs(a - keypoints[0][0]) + abs(b) + c
""",
    'stacking': """
def stage2_target_constraint1(end_effector, keypoints):
    points = np.vstack([end_effector, keypoints[0], keypoints[1]])
    centre = np.mean(points, axis=0)
    spread = np.std(points, axis=0)
    return np.linalg.norm(centre - keypoints[1]) + np.max(spread)
""",
    'arrays_filled': """
def stage2_collision_constraint1(end_effector, keypoints):
    costs = np.zeros(len(keypoints))
    for i in range(len(keypoints)):
        costs[i] = np.exp(-np.linalg.norm(end_effector - keypoints[i]) / 0.1)
    return np.mean(costs)
""",
    'where': """
def stage1_collision_constraint1(end_effector, keypoints):
    below = np.where(end_effector[2] < keypoints[0][2], 1.0, 0.0)
    return below
""",
    'nested_comprehension': """
def stage2_collision_constraint1(end_effector, keypoints):
    pairs = [
        np.linalg.norm(a - b)
        for i, a in enumerate(keypoints)
        for b in keypoints[i + 1:]
        if i > 1
    ]
    return max(pairs) - min(pairs)
""",
    'smooth': """
def stage1_target_constraint1(end_effector, keypoints):
    d = np.linalg.norm(end_effector - keypoints[0])
    return 1.0 / (1.0 + np.exp(-20 * (d - 0.1))) + np.log1p(d) + np.tanh(d) + np.hypot(d, 1) ** 0.5
""",
    'matrix': """
def stage1_target_constraint1(end_effector, keypoints):
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=float)
    return np.linalg.norm(turn @ end_effector - np.matmul(turn, keypoints[0]))
""",
    'signals': '''
def stage2_grasp_constraint1(end_effector, keypoints, held):
    """Hold on to the object."""
    return 0.0 if held else 1.0

def stage2_path_constraint1(end_effector, keypoints, path_length_m, time_s, start_end_effector):
    """Go straight, and quickly."""
    straight = np.linalg.norm(end_effector - start_end_effector)
    return max(0.0, path_length_m - straight) + 0.1 * time_s

def stage2_collision_constraint1(end_effector, keypoints, collided, start_keypoints):
    return 1.0 * collided + np.linalg.norm(keypoints[1] - start_keypoints[1])
''',
    'tabs_and_spaces': """
def stage1_target_constraint1( end_effector , keypoints ) :
\tcost=np.linalg.norm( end_effector-keypoints[ 0 ] );return cost
""",
    'unicode_comments': '''
# Пример: 目标 – naïve “quotes”, → arrows, ≤ 0 where satisfied ✅
def stage1_target_constraint1(end_effector, keypoints):
    """L'effecteur s'aligne avec l’objet (≤ 1 cm)."""
    return np.linalg.norm(end_effector - keypoints[0]) - 0.01
''',
    'windows_lines': (
        'def stage1_target_constraint1(end_effector, keypoints):\r\n    return 1.0\r\n'
    ),
    'byte_order_mark': (
        '\ufeffdef stage1_target_constraint1(end_effector, keypoints):\n    return 1.0\n'
    ),
    'many_stages': '\n'.join(
        f'def stage{stage}_path_constraint{number}(end_effector, keypoints):\n'
        f'    return end_effector[2] - {stage / 10}\n'
        for stage in (1, 5, 12)
        for number in (1, 2, 11)
    ),
}
