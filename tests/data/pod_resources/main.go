// Records the messages that the kubelet's own types make, for tests of what reads them:
//
//	cd tests/data/pod_resources && go run . .
//
// The tests need only what it has made.
package main

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/kubelet/pkg/apis/podresources/v1"
)

func main() {
	share := "6f9619ff-8b86-4011-b42d-00cf4fc964ff"
	node := &v1.TopologyInfo{Nodes: []*v1.NUMANode{{ID: 0}, {ID: 1}}}
	list := &v1.ListPodResourcesResponse{PodResources: []*v1.PodResources{
		{
			Name:      "worker-0",
			Namespace: "train",
			CpuIds:    []int64{1, 300},
			Memory:    []*v1.ContainerMemory{{MemoryType: "memory", Size: 1 << 40, Topology: node}},
			Containers: []*v1.ContainerResources{
				{
					Name: "main",
					Devices: []*v1.ContainerDevices{
						{ResourceName: "nvidia.com/gpu", DeviceIds: []string{
							"GPU-5b7f4a4e-0000-4000-8000-000000000000",
							"GPU-5b7f4a4e-0000-4000-8000-000000000001",
						}, Topology: node},
						{ResourceName: "example.com/nic", DeviceIds: []string{"mlx5_0"}},
					},
					CpuIds: []int64{2, 3, 70000},
					Memory: []*v1.ContainerMemory{{MemoryType: "hugepages-2Mi", Size: 1 << 21}},
				},
				{Name: "sidecar"},
			},
		},
		{
			Name:      "claimant",
			Namespace: "dra",
			Containers: []*v1.ContainerResources{{
				Name: "main",
				DynamicResources: []*v1.DynamicResource{{
					ClaimName:      "claimant-gpu-x7k2p",
					ClaimNamespace: "dra",
					ClaimResources: []*v1.ClaimResource{{
						CdiDevices: []*v1.CDIDevice{
							{Name: "k8s.gpu.nvidia.com/device=gpu-0"},
							{Name: "k8s.gpu.nvidia.com/claim=8d4b-gpu-0"},
						},
						DriverName: "gpu.nvidia.com",
						PoolName:   "gpu-node-0001",
						DeviceName: "gpu-0",
						ShareId:    &share,
					}},
				}},
			}},
		},
		{Name: "no-containers", Namespace: "default"},
	}}
	allocatable := &v1.AllocatableResourcesResponse{
		Devices: []*v1.ContainerDevices{
			{ResourceName: "nvidia.com/gpu", DeviceIds: []string{"GPU-5b7f4a4e-0000-4000-8000-000000000000"}, Topology: node},
			{ResourceName: "nvidia.com/gpu", DeviceIds: []string{"GPU-5b7f4a4e-0000-4000-8000-000000000001"}, Topology: node},
			{ResourceName: "example.com/nic", DeviceIds: []string{"mlx5_0"}},
		},
		CpuIds: []int64{0, 1, 2, 3},
		Memory: []*v1.ContainerMemory{{MemoryType: "memory", Size: 1 << 40}},
	}
	messages := map[string]map[string]any{}
	for name, message := range map[string]proto.Message{"list": list, "allocatable": allocatable} {
		wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
		if err != nil {
			panic(err)
		}
		text, err := protojson.Marshal(message)
		if err != nil {
			panic(err)
		}
		messages[name] = map[string]any{"wire": hex.EncodeToString(wire), "json": json.RawMessage(text)}
	}
	out, err := json.MarshalIndent(messages, "", "  ")
	if err != nil {
		panic(err)
	}
	path := filepath.Join(os.Args[1], "messages.json")
	if err := os.WriteFile(path, append(out, '\n'), 0o644); err != nil {
		panic(err)
	}
}
