"""What other libraries call our parameters: for the hint where one of their keys is used.

docs/configuration.md maps every key of the configurations that these names are from; the two are tested together.
"""

from collections.abc import Mapping

# Keys that are secrets, and the environment variable that takes each.
SECRETS: Mapping[str, str] = {
    "api_key": "VLLM_API_KEY",
    "wandb_api_key": "WANDB_API_KEY",
    "token": "HF_TOKEN",
    "hf_token": "HF_TOKEN",
    "hub_token": "HF_TOKEN",
    "use_auth_token": "HF_TOKEN",
}

# A key, whole or from its last dot on, and what it is here.
OTHER_NAMES: Mapping[str, str] = {
    # NeMo RL, and NeMo Gym's example
    "policy.model_name": "model.name",
    "policy.max_total_sequence_length": "env.max_context_length",
    "policy.train_global_batch_size": "batch_size",
    "policy.train_micro_batch_size": "micro_batch_size_per_gpu",
    "policy.max_grad_norm": "max_grad_norm",
    "policy.precision": "model.dtype",
    "policy.tokenizer.name": "model.tokenizer",
    "policy.tokenizer.chat_template": "model.chat_template",
    "policy.optimizer.kwargs.lr": "lr",
    "policy.optimizer.kwargs.weight_decay": "weight_decay",
    "dpo.reference_policy_kl_penalty": "beta",
    "dpo.preference_loss_weight": "preference_loss_weight",
    "dpo.sft_loss_weight": "sft_loss_weight",
    "dpo.preference_average_log_probs": "preference_average_log_probs",
    "dpo.sft_average_log_probs": "sft_average_log_probs",
    "dpo.max_num_epochs": "train.num_epochs",
    "dpo.max_num_steps": "train.max_steps",
    "dpo.val_period": "train.evaluation_interval",
    "dpo.seed": "seed",
    "data.train_data_path": "data.train",
    "data.val_data_path": "data.test",
    "data.val_data_paths": "data.validation",
    "data.train_split": "data.split",
    "data.val_split": "data.test_split",
    "data.dataset_name": "data.name",
    "data.max_input_seq_length": "env.max_context_length",
    "checkpointing.metric_name": "train.retention.metric_name",
    "checkpointing.higher_is_better": "train.retention.higher_is_better",
    "checkpointing.keep_top_k": "train.retention.keep_best",
    "checkpointing.save_period": "train.checkpoint_steps",
    "logger.wandb.project": "trackers.project",
    "logger.wandb.name": "trackers.run_name",
    "logger.wandb_enabled": "trackers.names",
    # rLLM
    "rllm.algorithm.dpo.beta": "beta",
    # TRL and Transformers
    "model_name_or_path": "model.name",
    "dataset_name": "data.train",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "train.num_epochs",
    "max_length": "env.max_context_length",
    "lora_r": "lora.r",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "epochs": "train.num_epochs",
    "lora_target_modules": "lora.target_modules",
    "eval_steps": "train.evaluation_interval",
    "save_steps": "train.checkpoint_steps",
    "torch_dtype": "model.dtype",
    "num_generations": "group_size",
    "rpo_alpha": "nll_alpha",
    "reward_funcs": "reward",
    "output_dir": "--run",
    "report_to": "trackers.names",
    "checkpoint_path": "--run",
    "elite_path": "--run",
    # AgileRL
    "tournament_size": "evolution.selection.tournament_size",
    "population_size": "population.size",
    "model_name": "model.name",
    "lora_config": "lora",
}
