//! Schedules that were trouble once.
