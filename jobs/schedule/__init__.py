"""Unattended runs: cron and systemd on this machine, KubeRay and Airflow elsewhere.

Every one of them runs the same idempotent command, made in `command.py`.
"""
