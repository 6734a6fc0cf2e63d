"""The doctor names what is missing and the command that installs it."""

from grape_bringup import doctor
from grape_bringup.doctor import Level


def test_a_package_that_is_missing_or_of_another_version_comes_with_its_command(
    tmp_path, monkeypatch
):
    constraints = tmp_path / 'constraints.txt'
    constraints.write_text('mujoco==0.0.1\nno-such-package==1.2\nnumpy==0.0.1\n')
    monkeypatch.setattr(doctor, 'NEEDED', ('mujoco', 'no-such-package', 'numpy'))
    found = {check.name: check for check in doctor.check_packages(constraints)}
    assert found['mujoco'].level is Level.FAIL and 'LIBERO' in found['mujoco'].remedy
    assert found['no-such-package'].remedy == 'pip install no-such-package==1.2'
    assert found['numpy'].level is Level.WARN


def test_rendering_works_here_with_at_least_one_backend():
    checks = doctor.check_rendering()
    assert any(check.level is Level.OK for check in checks)
    assert all(check.remedy for check in checks if check.level is not Level.OK)


def test_ros_processes_hear_each_other():
    (check,) = doctor.check_ros()
    assert check.level is Level.OK, check


def test_a_broken_ros_says_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, 'LISTEN', 'import no_rclpy_here')
    (check,) = doctor.check_ros()
    assert check.level is Level.FAIL and 'ROS 2' in check.remedy
