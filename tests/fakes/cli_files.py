"""Configuration files for commands."""


def write(folder, models, settings=""):
    gateway = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
    (folder / "cortex.toml").write_text(f'models_config = "models.toml"\n{settings}\n{gateway}')
    (folder / "models.toml").write_text(models)
