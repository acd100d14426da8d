"""Why a pod failed: judgement over what Kubernetes, its node's agent and its log say."""
