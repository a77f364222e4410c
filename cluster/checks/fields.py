"""The fields that Kubernetes' and KubeRay's kinds have, as far as they are of use here: JSON schemas in short.

KubeRay's own schemas (its custom resource definitions) know more, and are used beside these where they are at hand. An
API server drops what it does not know without a word, so an unknown field is a mistake.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
ANY: Schema = {}


def one_of(*choices: str) -> Schema:
    """A text out of some."""
    return {"type": "string", "enum": list(choices)}


def many(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def block(required: str = "", /, **properties: Schema) -> Schema:
    """An object without other fields than these; `required` names some of them."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": required.split(),
    }


METADATA = block("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)

_KEY = block("key name", key=TEXT, name=TEXT, optional=TRUTH)
_ENVIRONMENT = block(
    "name",
    name=TEXT,
    value=TEXT,
    valueFrom=block(
        secretKeyRef=_KEY,
        configMapKeyRef=_KEY,
        fieldRef=block("fieldPath", fieldPath=TEXT, apiVersion=TEXT),
        resourceFieldRef=ANY,
    ),
)
_SOURCE = block("name", name=TEXT, optional=TRUTH)
_QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = block(requests=_QUANTITIES, limits=_QUANTITIES)
_PROBE = block(
    httpGet=block(
        "port", path=TEXT, port=ANY, scheme=TEXT, httpHeaders=many(block("name value", name=TEXT, value=TEXT))
    ),
    tcpSocket=block("port", port=ANY),
    exec=block("command", command=many(TEXT)),
    **dict.fromkeys(
        ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold"), WHOLE
    ),
)
_CONTAINER_SECURITY = block(
    allowPrivilegeEscalation=TRUTH,
    readOnlyRootFilesystem=TRUTH,
    runAsNonRoot=TRUTH,
    runAsUser=WHOLE,
    runAsGroup=WHOLE,
    privileged=TRUTH,
    capabilities=block(add=many(TEXT), drop=many(TEXT)),
    seccompProfile=block("type", type=TEXT, localhostProfile=TEXT),
)
_CONTAINER = block(
    "name image",
    name=TEXT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    workingDir=TEXT,
    command=many(TEXT),
    args=many(TEXT),
    ports=many(block("containerPort", containerPort=WHOLE, name=TEXT, protocol=one_of("TCP", "UDP"))),
    env=many(_ENVIRONMENT),
    envFrom=many(block(secretRef=_SOURCE, configMapRef=_SOURCE, prefix=TEXT)),
    resources=RESOURCES,
    volumeMounts=many(block("name mountPath", name=TEXT, mountPath=TEXT, readOnly=TRUTH, subPath=TEXT)),
    lifecycle=ANY,
    livenessProbe=_PROBE,
    readinessProbe=_PROBE,
    startupProbe=_PROBE,
    securityContext=_CONTAINER_SECURITY,
)
_VOLUME = block(
    "name",
    name=TEXT,
    emptyDir=block(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
    persistentVolumeClaim=block("claimName", claimName=TEXT, readOnly=TRUTH),
    secret=block("secretName", secretName=TEXT, optional=TRUTH, items=ANY, defaultMode=WHOLE),
    configMap=block("name", name=TEXT, optional=TRUTH, items=ANY, defaultMode=WHOLE),
    hostPath=block("path", path=TEXT, type=TEXT),
)
POD_TEMPLATE = block(
    "spec",
    metadata=block(labels=TEXTS, annotations=TEXTS),
    spec=block(
        "containers",
        containers=many(_CONTAINER),
        initContainers=many(_CONTAINER),
        volumes=many(_VOLUME),
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        serviceAccountName=TEXT,
        automountServiceAccountToken=TRUTH,
        nodeSelector=TEXTS,
        priorityClassName=TEXT,
        terminationGracePeriodSeconds=WHOLE,
        imagePullSecrets=many(block("name", name=TEXT)),
        tolerations=many(
            block(
                key=TEXT,
                operator=one_of("Exists", "Equal"),
                value=TEXT,
                effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
                tolerationSeconds=WHOLE,
            )
        ),
        affinity=ANY,
        topologySpreadConstraints=ANY,
        securityContext=block(
            runAsNonRoot=TRUTH,
            runAsUser=WHOLE,
            runAsGroup=WHOLE,
            fsGroup=WHOLE,
            seccompProfile=block("type", type=TEXT, localhostProfile=TEXT),
        ),
    ),
)
SERVICE = block(
    "metadata spec",
    apiVersion={"const": "v1"},
    kind={"const": "Service"},
    metadata=METADATA,
    spec=block(
        "ports",
        type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        clusterIP=TEXT,
        selector=TEXTS,
        ports=many(block("port", name=TEXT, port=WHOLE, targetPort=ANY, protocol=one_of("TCP", "UDP"), nodePort=WHOLE)),
    ),
)

# -- KubeRay 1.7

_GROUP = {
    "rayStartParams": TEXTS,
    "resources": TEXTS,
    "labels": TEXTS,
    "template": POD_TEMPLATE,
}  # of the head and of workers alike
RAY_CLUSTER_SPEC = block(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=TRUTH,
    suspend=TRUTH,
    authOptions=block(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=TRUTH),
    autoscalerOptions=block(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=WHOLE,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        resources=RESOURCES,
        image=TEXT,
        imagePullPolicy=TEXT,
        env=many(_ENVIRONMENT),
        envFrom=ANY,
        securityContext=_CONTAINER_SECURITY,
    ),
    gcsFaultToleranceOptions=block(
        backend=one_of("redis", "rocksdb"),
        redisAddress=TEXT,
        redisPassword=ANY,
        redisUsername=ANY,
        externalStorageNamespace=TEXT,
        storage=ANY,
    ),
    headServiceAnnotations=TEXTS,
    upgradeStrategy=block(type=one_of("Recreate", "None")),
    networkPolicy=ANY,
    headGroupSpec=block("template", serviceType=TEXT, enableIngress=TRUTH, headService=ANY, **_GROUP),
    workerGroupSpecs=many(
        block(
            "groupName maxReplicas minReplicas template",
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            numOfHosts=WHOLE,
            priority=WHOLE,
            idleTimeoutSeconds=WHOLE,
            suspend=TRUTH,
            **_GROUP,
        )
    ),
)
_POLICY = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
_RULE = block(
    "condition policy",
    policy=_POLICY,
    condition=block(
        jobStatus=one_of("SUCCEEDED", "FAILED"),
        jobDeploymentStatus=one_of("Failed"),
        ttlSeconds={"type": "integer", "minimum": 0},
    ),
)
RAY_JOB_SPEC = block(
    "entrypoint",
    entrypoint=TEXT,
    # KubeRay's schema takes any word here.
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=block(backoffLimit=WHOLE),
    submitterPodTemplate=POD_TEMPLATE,
    rayClusterSpec=RAY_CLUSTER_SPEC,
    clusterSelector=TEXTS,
    runtimeEnvYAML=TEXT,
    backoffLimit={"type": "integer", "minimum": 0},
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
    deletionStrategy=block(
        onSuccess=block("policy", policy=_POLICY), onFailure=block("policy", policy=_POLICY), deletionRules=many(_RULE)
    ),
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    metadata=TEXTS,
    jobId=TEXT,
    suspend=TRUTH,
)
RAY_SERVICE_SPEC = block(
    "rayClusterConfig",
    rayClusterConfig=RAY_CLUSTER_SPEC,
    serveConfigV2=TEXT,
    serviceUnhealthySecondThreshold=WHOLE,
    deploymentUnhealthySecondThreshold=WHOLE,
    excludeHeadPodFromServeSvc=TRUTH,
    rayClusterDeletionDelaySeconds={"type": "integer", "minimum": 0},
    serveService=ANY,
    suspend=TRUTH,
    upgradeStrategy=block(
        type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"), clusterUpgradeOptions=ANY
    ),
)


def _ray(kind: str, spec: Schema) -> Schema:
    return block(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


RAY_KINDS = {
    "RayCluster": _ray("RayCluster", RAY_CLUSTER_SPEC),
    "RayJob": _ray("RayJob", RAY_JOB_SPEC),
    "RayService": _ray("RayService", RAY_SERVICE_SPEC),
}

# -- Kubernetes

_SELECTOR = block("matchLabels", matchLabels=TEXTS)
_CLAIM = block(
    "accessModes resources",
    accessModes=many(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
    resources=RESOURCES,
    storageClassName=TEXT,
)
_PEERS = many(block(podSelector=ANY, namespaceSelector=ANY, ipBlock=ANY))
_PORTS = many(block(port=ANY, protocol=one_of("TCP", "UDP"), endPort=WHOLE))


def _kind(version: str, kind: str, required: str = "", /, **properties: Schema) -> Schema:
    named = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA}
    return block(f"apiVersion kind metadata {required}", **named, **properties)


KINDS = RAY_KINDS | {
    "Service": SERVICE,
    "Namespace": _kind("v1", "Namespace"),
    "ServiceAccount": _kind("v1", "ServiceAccount", automountServiceAccountToken=TRUTH, imagePullSecrets=ANY),
    "ConfigMap": _kind("v1", "ConfigMap", data=TEXTS),
    "PersistentVolumeClaim": _kind("v1", "PersistentVolumeClaim", "spec", spec=_CLAIM),
    "Deployment": _kind(
        "apps/v1",
        "Deployment",
        "spec",
        spec=block(
            "selector template",
            replicas=WHOLE,
            selector=_SELECTOR,
            template=POD_TEMPLATE,
            revisionHistoryLimit=WHOLE,
            strategy=block(type=one_of("Recreate", "RollingUpdate"), rollingUpdate=ANY),
        ),
    ),
    "StatefulSet": _kind(
        "apps/v1",
        "StatefulSet",
        "spec",
        spec=block(
            "selector template serviceName",
            replicas=WHOLE,
            serviceName=TEXT,
            selector=_SELECTOR,
            template=POD_TEMPLATE,
            volumeClaimTemplates=many(block("metadata spec", metadata=METADATA, spec=_CLAIM)),
        ),
    ),
    "NetworkPolicy": _kind(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "spec",
        spec=block(
            "podSelector",
            podSelector=block(matchLabels=TEXTS),
            policyTypes=many(one_of("Ingress", "Egress")),
            ingress=many(block(**{"from": _PEERS, "ports": _PORTS})),
            egress=many(block(to=_PEERS, ports=_PORTS)),
        ),
    ),
    "PodDisruptionBudget": _kind(
        "policy/v1",
        "PodDisruptionBudget",
        "spec",
        spec=block("selector", selector=_SELECTOR, maxUnavailable=ANY, minAvailable=ANY),
    ),
}
"""Kinds by name. Role and Secret are not among them: rights that nobody needs, and secrets in files."""
