-- Run once, when the volume is new. The study's comes last: the health check asks for it.
CREATE DATABASE mlflow;
CREATE DATABASE auth;
CREATE DATABASE optuna;
CREATE DATABASE study;
