#!/usr/bin/env bash
# Once for an AWS account, before the first `ray up cluster.yaml`: the roles, the key pair and the bucket that cluster.yaml names.
#   cluster/aws-once.sh REGION BUCKET [CLUSTER]     CLUSTER: cluster_name of cluster.yaml, fewshot by default
# Needs the AWS command line, logged in as somebody who may make roles. Calling it again changes nothing,
# with another bucket or cluster it gives the roles that one instead.
set -euo pipefail
[ $# -eq 2 ] || [ $# -eq 3 ] || { echo "usage: $0 REGION BUCKET [CLUSTER]" >&2; exit 2; }
region=$1 bucket=$2 cluster=${3:-fewshot} key=${HOME}/.ssh/fewshot-ray.pem
export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_PAGER=
there() { "$@" >/dev/null 2>&1; }

there aws s3api head-bucket --bucket "$bucket" || {
  # us-east-1 is the one region that may not be named here
  [ "$region" = us-east-1 ] || set -- --create-bucket-configuration "LocationConstraint=$region"
  [ "$region" != us-east-1 ] || set --
  aws s3api create-bucket --bucket "$bucket" "$@" >/dev/null
  aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
}

role() {  # NAME POLICY: a role for nodes, its profile and all that it may do
  there aws iam get-role --role-name "$1" || aws iam create-role --role-name "$1" --assume-role-policy-document \
    '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}' >/dev/null
  aws iam put-role-policy --role-name "$1" --policy-name fewshot-ray --policy-document "{\"Version\":\"2012-10-17\",\"Statement\":[$2]}"
  there aws iam get-instance-profile --instance-profile-name "$1" || {
    aws iam create-instance-profile --instance-profile-name "$1" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
  }
}

account=$(aws sts get-caller-identity --query Account --output text)
storage='{"Effect":"Allow","Action":["s3:ListBucket","s3:GetBucketLocation"],"Resource":"arn:aws:s3:::'$bucket'"},
  {"Effect":"Allow","Action":["s3:GetObject","s3:PutObject","s3:DeleteObject","s3:AbortMultipartUpload"],"Resource":"arn:aws:s3:::'$bucket'/*"}'
# The head starts nodes in this region and hands them the workers' role. It ends and tags those of its own cluster only: a node gets the
# cluster's name at its start, and nothing else can be given it.
nodes='{"Effect":"Allow","Action":["ec2:Describe*"],"Resource":"*"},
  {"Effect":"Allow","Action":["ec2:RunInstances"],"Resource":"*","Condition":{"StringEquals":{"aws:RequestedRegion":"'$region'"}}},
  {"Effect":"Allow","Action":["ec2:CreateTags"],"Resource":"*","Condition":{"StringEquals":
   {"aws:RequestedRegion":"'$region'","ec2:CreateAction":"RunInstances","aws:RequestTag/ray-cluster-name":"'$cluster'"}}},
  {"Effect":"Allow","Action":["ec2:CreateTags","ec2:TerminateInstances"],"Resource":"*","Condition":{"StringEquals":
   {"aws:RequestedRegion":"'$region'","aws:ResourceTag/ray-cluster-name":"'$cluster'"}}},
  {"Effect":"Allow","Action":["ssm:GetParameters"],"Resource":"arn:aws:ssm:'$region'::parameter/aws/service/deeplearning/*"},
  {"Effect":"Allow","Action":["iam:PassRole"],"Resource":"arn:aws:iam::'$account':role/fewshot-ray-worker"}'
role fewshot-ray-worker "$storage"
role fewshot-ray-head "$storage,$nodes"

# Spot nodes need it; it may be there already.
[ "$(aws iam list-roles --path-prefix /aws-service-role/spot.amazonaws.com/ --query 'length(Roles)' --output text)" != 0 ] ||
  aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null

if [ -e "$key" ]; then
  echo "the key pair is there: $key"
else
  mkdir -p "$(dirname "$key")"
  (umask 077; aws ec2 create-key-pair --key-name fewshot-ray --query KeyMaterial --output text > "$key.new" && mv "$key.new" "$key")
fi

[ -e ~/.ray/auth_token ] || echo "next: ray get-auth-token --generate && chmod 600 ~/.ray/auth_token"
echo "next: fill in <region> and <bucket> in cluster.yaml, then ray up cluster.yaml"
